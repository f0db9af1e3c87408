// How Lanonasis's users listen: a class around EventSource that hands the parsed data to
// whoever asked for the event's type.
import { EventSource } from 'eventsource'
import { job, report } from '../report.mjs'

class Stream {
  #source
  #listeners = new Map()

  constructor(base, key) {
    this.base = base
    this.key = key
  }

  on(type, listener) {
    this.#listeners.set(type, [...(this.#listeners.get(type) ?? []), listener])
    return this
  }

  connect(types, filters) {
    const query = new URLSearchParams()
    for (const type of types) query.append('events', type)
    for (const [name, value] of Object.entries(filters)) query.append(`filters[${name}]`, value)
    query.append('heartbeat', '30')
    this.#source = new EventSource(`${this.base}/api/v1/stream?${query}`, {
      fetch: (input, init) => fetch(input, { ...init, headers: { ...init.headers, Authorization: `Bearer ${this.key}` } }),
    })
    this.#source.onopen = () => report('open')
    this.#source.onerror = () => report('lost')
    for (const type of this.#listeners.keys()) this.#source.addEventListener(type, (event) => this.#handle(event))
  }

  #handle(event) {
    const data = JSON.parse(event.data)
    for (const listener of this.#listeners.get(event.type) ?? []) listener(data, event.lastEventId)
  }
}

const stream = new Stream(job.url, job.key)
for (const type of job.types) {
  stream.on(type, (data, id) => report('event', { type, id, data: JSON.stringify(data) }))
}
stream.connect(['memory.created', 'search.performed'], { user_id: 'user123', run: job.id })
