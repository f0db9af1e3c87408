"""PyPI websockets: comes back with the last position it was given, as last_event_id."""

import asyncio
import base64
import json
import re
from urllib.parse import quote

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus

from report import job, report

last_event_id = ""


async def follow():
    """Follows until the connection ends, and returns (status, code, reason)."""
    global last_event_id
    url = job["url"]
    if last_event_id:
        url += ("&" if "?" in url else "?") + "last_event_id=" + quote(last_event_id)
    try:
        async with connect(
            url,
            additional_headers=job["headers"],
            subprotocols=job["protocols"] or None,
            max_size=None,
            proxy=None,
        ) as socket:
            report("open", type=socket.subprotocol or "")
            for message in job["send"]:
                await socket.send(message["text"] or base64.b64decode(message["binary"]))
            while True:
                data = await socket.recv()
                if isinstance(data, bytes):
                    report("binary", data=base64.b64encode(data).decode())
                    continue
                frame = json.loads(data)
                if "ack" in frame or "ref" in frame:
                    report("ack", data=data)
                    continue
                report("frame", data=data)
                last_event_id = frame.get("cursor") or frame.get("id") or frame.get("event_id") or last_event_id
    except InvalidStatus as e:
        return e.response.status_code, 0, ""
    except ConnectionClosed as e:
        return 0, e.rcvd.code if e.rcvd else 1006, e.rcvd.reason if e.rcvd else ""
    except (OSError, EOFError, InvalidMessage, InvalidHandshake, TimeoutError):
        return 0, 1006, ""


def back_after(code, reason):
    """How many seconds to wait before coming back, by the table of close codes; None: not at all."""
    if code == 1006:
        return 0.025  # broken off
    if not 4003 <= code <= 4006:
        return None
    told = re.search(r"retry in (\d+) ms", reason)
    return int(told[1]) / 1000 if told else 1


async def main():
    while True:
        status, code, reason = await follow()
        if status:
            report("end", code=status)
            return
        delay = back_after(code, reason)
        if delay is None:
            report("end", code=code, data=reason)
            return
        report("lost", code=code, data=reason)
        await asyncio.sleep(delay)


asyncio.run(main())
