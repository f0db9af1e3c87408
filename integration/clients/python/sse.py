"""PyPI httpx-sse: resuming as its documentation shows, by sse.id and sse.retry."""

import time

import httpx
from httpx_sse import connect_sse

from report import job, report

last_event_id = ""
retry = 0.2


def follow(client):
    global last_event_id, retry
    headers = dict(job["headers"])
    if last_event_id:
        headers["Last-Event-ID"] = last_event_id
    with connect_sse(client, "GET", job["url"], headers=headers) as source:
        if source.response.status_code != 200:
            return source.response.status_code
        report("open")
        for sse in source.iter_sse():
            last_event_id = sse.id
            if sse.retry is not None:
                retry = sse.retry / 1000
                report("retry", code=sse.retry)
            report("event", type=sse.event, id=sse.id, data=sse.data)
    return 200


with httpx.Client(timeout=httpx.Timeout(10, read=60), trust_env=False) as client:
    while True:
        status = 0
        try:
            status = follow(client)
        except httpx.TransportError:
            pass
        if status not in (0, 200):
            report("end", code=status)
            break
        report("lost")
        time.sleep(retry)
