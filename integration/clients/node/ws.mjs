// npm ws: comes back with the last position it was given, in the Last-Event-ID header.
import WebSocket from 'ws'
import { job, report, wait } from './report.mjs'

let lastID = ''

function follow() {
  const headers = { ...job.headers }
  if (lastID !== '') headers['Last-Event-ID'] = lastID
  const socket = new WebSocket(job.url, job.protocols, { headers })
  return new Promise((resolve) => {
    socket.on('open', () => {
      report('open', { type: socket.protocol })
      for (const { text, binary } of job.send) socket.send(text || Buffer.from(binary, 'base64'))
    })
    socket.on('message', (data, binary) => {
      if (binary) return report('binary', { data: data.toString('base64') })
      const text = data.toString()
      const frame = JSON.parse(text)
      if ('ack' in frame || 'ref' in frame) return report('ack', { data: text })
      report('frame', { data: text })
      lastID = frame.cursor ?? frame.id ?? frame.event_id ?? lastID
    })
    socket.on('ping', () => report('ping'))
    socket.on('unexpected-response', (request, answer) => {
      resolve({ status: answer.statusCode })
      request.destroy()
    })
    socket.on('error', () => {}) // `close` follows
    socket.on('close', (code, reason) => resolve({ code, reason: reason.toString() }))
  })
}

// How long to wait before coming back, by the table of close codes; undefined: not at all.
function backAfter(code, reason) {
  if (code === 1006) return 25 // broken off
  if (code < 4003 || code > 4006) return undefined
  return Number(/retry in (\d+) ms/.exec(reason)?.[1] ?? 1000)
}

for (;;) {
  const { status, code, reason } = await follow()
  if (status) {
    report('end', { code: status })
    break
  }
  const delay = backAfter(code, reason)
  if (delay === undefined) {
    report('end', { code, data: reason })
    break
  }
  report('lost', { code, data: reason })
  await wait(delay)
}
