// Runs Durable Streams' server: node durable-streams.mjs PACKAGES PORT DATA
import { createRequire } from 'node:module'

const [packages, port, dataDir] = process.argv.slice(2)
const { DurableStreamTestServer } = createRequire(packages + '/')('@durable-streams/server')
const server = new DurableStreamTestServer({ port: Number(port), host: '127.0.0.1', dataDir })
await server.start()
server.server.keepAliveTimeout = 600_000 // not Node's 5 s: a publisher may pause
