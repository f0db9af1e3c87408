// How Nusomi's users listen: a loop over events, with reconnecting hidden inside.
import { EventSourceParserStream } from 'eventsource-parser/stream'
import { job, report, wait } from '../report.mjs'

class Events {
  constructor(base, key) {
    this.base = base
    this.key = key
  }

  async *stream(session, params) {
    const query = new URLSearchParams(params)
    const headers = { Authorization: `Bearer ${this.key}`, Accept: 'text/event-stream' }
    for (;;) {
      try {
        const answer = await fetch(`${this.base}/v1/sessions/${session}/events/stream?${query}`, { headers })
        if (answer.status !== 200) throw new TypeError(`status ${answer.status}`)
        const frames = answer.body.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream())
        for await (const frame of frames) {
          headers['Last-Event-ID'] = frame.id
          yield { type: frame.event, id: frame.id, ...JSON.parse(frame.data) }
        }
      } catch (e) {
        report('lost', { data: String(e) })
      }
      await wait(50)
    }
  }
}

const events = new Events(job.url, job.key)
for await (const { type, id, ...data } of events.stream(job.id, [['from_t_ms', '10'], ['type', 'click'], ['type', 'validation_error']])) {
  report('event', { type, id, data: JSON.stringify(data) })
}
