// How Voicebip's users listen: EventSource for a call's transcript, a reader of their own
// for a conversation, a WebSocket for a call's events. The key is in the URL of two.
import { EventSource } from 'eventsource'
import WebSocket from 'ws'
import { job, report } from '../report.mjs'

function transcript(call) {
  const source = new EventSource(`${job.url}/v1/calls/${call}/transcript/stream?token=${job.key}&from=start`)
  source.onmessage = (event) => {
    const { role, text, turn_id, is_final, ts } = JSON.parse(event.data)
    report('turn', { id: event.lastEventId, data: JSON.stringify({ role, text, turn_id, is_final, ts }) })
  }
  source.onerror = () => report(source.readyState === EventSource.CLOSED ? 'turns end' : 'lost')
}

// Reads as people do by hand: frames by the blank line, no comments, data only.
async function conversation(id) {
  const answer = await fetch(`${job.url}/v1/conversations/${id}/stream?from=start`, {
    headers: { Authorization: `Bearer ${job.key}` },
  })
  const handlers = {
    'message.received': (event) => report('message', { type: event.event_type, data: JSON.stringify(event.payload) }),
    'conversation.mode_changed': (event) => report('mode', { type: event.event_type, data: JSON.stringify(event.payload) }),
  }
  let buffer = ''
  for await (const text of answer.body.pipeThrough(new TextDecoderStream())) {
    const frames = (buffer + text).split('\n\n')
    buffer = frames.pop()
    for (const frame of frames) {
      for (const line of frame.split('\n')) {
        if (line.startsWith(':') || !line.startsWith('data: ')) continue
        const event = JSON.parse(line.slice('data: '.length))
        handlers[event.event_type]?.(event)
      }
    }
  }
}

function callEvents(call) {
  const socket = new WebSocket(`${job.url.replace('http', 'ws')}/v1/calls/${call}/stream?token=${job.key}&from=start`)
  socket.onmessage = ({ data }) => {
    const event = JSON.parse(data)
    report('call', { type: event.event_type, id: event.event_id, data: JSON.stringify(event.payload) })
  }
  socket.onerror = (e) => report('fault', { data: e.message })
}

for (const what of job.types) ({ transcript, conversation, callEvents })[what](job.id)
