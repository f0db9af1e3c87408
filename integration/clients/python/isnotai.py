"""How isnotAI's users read a session's events: page after page by the cursor. The last
cursor then starts the live stream."""

import httpx
from httpx_sse import connect_sse

from report import job, report

headers = {"Authorization": "Bearer " + job["key"]}
with httpx.Client(base_url=job["url"], headers=headers, timeout=httpx.Timeout(10, read=60), trust_env=False) as client:
    path = "/v1/sessions/" + job["id"] + "/events"
    cursor = ""
    while True:
        params = {"pageSize": 7, "include": "payload"} | ({"cursor": cursor} if cursor else {})
        page = client.get(path, params=params).raise_for_status().json()
        for event in page["data"]:
            report("page", type=event["eventTypeName"], id=event["eventId"])
        cursor = page["pagination"]["nextCursor"]
        if not page["pagination"]["hasMore"]:
            break
    with connect_sse(client, "GET", path + "/stream", params={"last_event_id": cursor}) as source:
        report("open")
        for sse in source.iter_sse():
            report("page", type=sse.event, id=sse.id)
