// Drives mcptrace with a client of the official TypeScript SDKs: `drive.mjs SDK SPEC`. SDK is `sdk` (line 1) or `client` (line 2), SPEC is
// JSON as for ../python/drive.py. The client itself checks every structured result against the schema of its tool.

import assert from 'node:assert/strict';
import { openSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

const TOOLS = [
  'bpf_info', 'describe_probe', 'exec_program', 'get_result', 'list_executions', 'list_probes', 'query_history', 'run_probe',
  'stop_execution', 'triage',
];
const VERSIONS = { legacy: '2025-11-25', auto: '2026-07-28' };
const PATIENCE = 60_000;

const [sdk, written] = process.argv.slice(2);
const spec = JSON.parse(written);
const updates = new Set();
const { connect } = await import(`./${sdk}.mjs`);
const { client, version, callTool, close } = await connect(spec, (uri) => updates.add(uri));
const isLegacy = spec.era === 'legacy';
const begun = new Set();
let checks = 0;

function check(truth, what) {
  assert.ok(truth, typeof what === 'string' ? what : JSON.stringify(what));
  checks += 1;
}

/** Calls a tool that must succeed; gives its structured result. */
async function call(name, args = {}, options = {}) {
  const result = await callTool({ name, arguments: args }, { timeout: PATIENCE, ...options });
  check(!result.isError, result);
  check(result.structuredContent && result.content[0].text, result);
  begun.add(result.structuredContent.execution_id);
  return result.structuredContent;
}

/** Calls a tool that must refuse; gives what it says. */
async function refused(name, args) {
  const result = await callTool({ name, arguments: args });
  check(result.isError, result);
  return result.structuredContent;
}

/** An error of the protocol, which the client throws. */
async function fails(what, code, text) {
  const error = await what().then(() => undefined, (error) => error);
  check(error?.code === code && (error.message + JSON.stringify(error.data)).includes(text), `${code} ${text}: ${error}`);
}

async function until(what, found) {
  const deadline = Date.now() + PATIENCE;
  while (!(await found())) {
    check(Date.now() < deadline, `not in time: ${what}`);
    await sleep(100);
  }
}

async function begin(args) {
  return (await call('run_probe', { background: true, seconds: 600, ...args })).execution_id;
}

const steps = {
  async introduction() {
    check(version === VERSIONS[spec.era], version);
    check(client.getServerVersion()?.name === 'mcptrace', client.getServerVersion());
    check(client.getInstructions().includes('run_probe'), client.getInstructions());
    const { tools } = await client.listTools();
    assert.deepEqual(tools.map((tool) => tool.name).sort(), TOOLS);
    check(tools.every((tool) => tool.outputSchema && tool.annotations && tool.title), tools);
  },

  async looking() {
    const info = await call('bpf_info');
    check(info.native_works, info.problems);
    const names = (await call('list_probes')).native.map((probe) => probe.name);
    check(names.includes('file_opens') && names.includes('syscall_counts'), names);
    check((await call('describe_probe', { name: 'file_opens' })).options.path_prefix, 'no options');
    check((await call('list_probes', { source: 'scripts' })).scripts.length > 10, 'no scripts');
  },

  /** A list in pages, whose size is a number as text. */
  async pagesOfProbes() {
    const [found, args] = [new Set(), { filter: 'sched:*', limit: '10' }];
    for (;;) {
      const page = await call('list_probes', args);
      check(page.count === page.probes.length && page.count <= 10, page);
      page.probes.forEach((name) => found.add(name));
      if (page.next_cursor === undefined) {
        check(found.size === page.total && found.size > 10, `${found.size} of ${page.total}`);
        return;
      }
      args.cursor = page.next_cursor;
    }
  },

  /** What this process does is found to the last one, and paged through by cursor. */
  async exactCountInPages() {
    const folder = await mkdtemp(join(tmpdir(), 'mcptrace-'));
    const prefix = join(folder, 'none-');
    const id = await begin({ probe: 'file_opens', options: { path_prefix: prefix } });
    const wanted = Array.from({ length: 23 }, (_, number) => `${prefix}${number}`);
    wanted.forEach((path) => assert.throws(() => openSync(path)));
    await rm(folder, { recursive: true });
    const stopped = await call('stop_execution', { execution_id: id });
    check(stopped.status === 'stopped' && stopped.loss.seen === 23, stopped.loss);
    const [paths, args] = [[], { execution_id: id, limit: '7' }];
    for (;;) {
      const page = await call('get_result', args);
      paths.push(...page.report.rows.map((row) => row.path));
      if (page.more?.cursor === undefined) break;
      args.cursor = page.more.cursor;
    }
    assert.deepEqual(paths, wanted);
  },

  async textForNumbers() {
    const found = await call('run_probe', {
      probe: 'syscall_latency', seconds: '0.3', top: '3', background: 'false',
      options: '{"slower_than_us": "100000"}', filter: '{"uid": "0"}',
    });
    check(found.options.slower_than_us === 100_000 && found.filter.uid === 0, found);
  },

  async progress() {
    const told = [];
    const found = await call('run_probe', { probe: 'syscall_counts', seconds: 3 }, { onprogress: (one) => told.push(one) });
    check(found.status === 'completed' && found.loss.seen > 0, found);
    check(told.length > 0 && told.every(({ total, message }) => total === 3 && message.includes('seen')), told);
    check(told.every(({ progress }, index) => index === 0 || progress > told[index - 1].progress), told);
  },

  /** A call that its caller gives up ends what it has started. */
  async cancelling() {
    const seconds = (40_000 + Math.ceil(Math.random() * 5000)) / 1000;
    const statuses = async () => {
      const { executions } = await call('list_executions');
      return `${executions.filter((one) => one.planned_seconds === seconds).map((one) => one.status)}`;
    };
    const abort = new AbortController();
    // Of what never happens, so that it costs nothing and no budget ends it.
    const args = { probe: 'file_opens', options: { path_prefix: '/nowhere/' }, seconds };
    const calling = callTool({ name: 'run_probe', arguments: args }, { signal: abort.signal });
    const givenUp = assert.rejects(calling);
    await until('it runs', async () => (await statuses()) === 'running');
    abort.abort('not wanted any more');
    await givenUp;
    await until('it is stopped', async () => (await statuses()) === 'stopped');
  },

  async scripts() {
    const program = 'BEGIN { printf("%s\\n", "hello"); @n[7] = count(); exit(); }';
    const started = await call('exec_program', { program, timeout: '5' });
    const found = await call('get_result', { execution_id: started.execution_id, wait_seconds: 30 });
    check(found.output.includes('hello') && found.status === 'completed', found);
    check(found.reports.some((report) => report.name === '@n'), found);
    const wrong = await refused('exec_program', { program: 'BEGIN { printf( }' });
    check(wrong.category === 'syntax' && wrong.line === 1, wrong);
  },

  async triage() {
    // A user may have two under way, and other clients of these tests are the same user.
    await until('triage', async () => {
      const asked = { name: 'triage', arguments: { seconds: 2, focus: 'cpu' } };
      const { isError, structuredContent: found } = await callTool(asked, { timeout: PATIENCE });
      const busy = isError && found.category === 'busy';
      check(busy || (Array.isArray(found.findings) && found.window.seconds > 1), found);
      return !busy;
    });
  },

  async history() {
    if (spec.recorded) {
      const asked = { name: 'query_history', arguments: { metric: 'context_switches', from: '-1m' } };
      await until('history', async () => {
        const { isError, structuredContent } = await callTool(asked);
        return !isError && structuredContent.coverage.length > 0;
      });
    } else {
      const refusal = await refused('query_history', { metric: 'context_switches' });
      check(JSON.stringify(refusal).includes('daemon'), refusal);
    }
  },

  async errors() {
    const unknown = await refused('run_probe', { probe: 'file_open' });
    check(unknown.category === 'unknown_probe' && unknown.did_you_mean.includes('file_opens'), unknown);
    const misspelt = await refused('run_probe', { probe: 'file_opens', filter: { comn: 'sh' } });
    check(misspelt.category === 'unknown_argument' && misspelt.did_you_mean.includes('filter.comm'), misspelt);
    check((await refused('run_probe', { probe: 'file_opens', seconds: 'soon' })).message.includes('seconds'), 'seconds');
    check((await refused('get_result', { execution_id: 'exec_0' })).category === 'unknown_execution', 'exec_0');
    await fails(() => callTool({ name: 'run_prob', arguments: {} }), -32602, 'run_probe');
    const gone = isLegacy ? -32002 : -32602;
    await fails(() => client.readResource({ uri: 'mcptrace://probes/nothing' }), gone, 'nothing');
    await fails(() => client.getPrompt({ name: 'nothing' }), -32602, 'nothing');
  },

  async resources() {
    const { resources } = await client.listResources();
    check(new Set(resources.map((one) => one.uri)).size === resources.length && resources.length > 50, `${resources.length}`);
    for (const uri of ['mcptrace://schema/report', 'mcptrace://probes/file_opens', 'mcptrace://scripts/accept_queue']) {
      check(resources.some((one) => one.uri === uri), uri);
      const [content] = (await client.readResource({ uri })).contents;
      check(content.uri === uri && content.text.length > 100, content);
      check(content.mimeType !== 'application/json' || JSON.parse(content.text), content);
    }
    const { resourceTemplates } = await client.listResourceTemplates();
    check(resourceTemplates.some((one) => one.uriTemplate === 'mcptrace://executions/{id}/flamegraph.svg'), resourceTemplates);
    const found = await call('run_probe', { probe: 'cpu_profile', seconds: 1 });
    const picture = await client.readResource({ uri: `mcptrace://executions/${found.execution_id}/flamegraph.svg` });
    check(picture.contents[0].mimeType === 'image/svg+xml' && picture.contents[0].text.includes('<svg'), 'no picture');
  },

  /** Changes of an execution are told. */
  async subscribing() {
    const uri = `mcptrace://executions/${await begin({ probe: 'syscall_counts' })}`;
    const id = uri.split('/').at(-1);
    if (isLegacy) {
      await client.subscribeResource({ uri });
      await until('an update', () => updates.has(uri));
      await client.unsubscribeResource({ uri });
      await call('stop_execution', { execution_id: id });
    } else {
      const subscription = await client.listen({ resourceSubscriptions: [uri] });
      assert.deepEqual(subscription.honoredFilter.resourceSubscriptions, [uri]);
      await until('an update', () => updates.has(uri));
      await call('stop_execution', { execution_id: id });
      check((await Promise.race([subscription.closed, sleep(PATIENCE, 'late')])) === 'graceful', 'the end is not told');
    }
    check(JSON.parse((await client.readResource({ uri })).contents[0].text).status === 'stopped', 'it still runs');
  },

  async prompts() {
    const { prompts } = await client.listPrompts();
    check(prompts.length >= 5 && prompts.every((prompt) => prompt.description), prompts);
    const { name } = prompts.find((prompt) => prompt.arguments?.some((argument) => argument.name === 'pid'));
    const got = await client.getPrompt({ name, arguments: { pid: `${process.pid}` } });
    check(got.messages[0].content.text.includes(`${process.pid}`), got);
    const argument = { name: 'pid', value: `${process.pid}` };
    const { completion } = await client.complete({ ref: { type: 'ref/prompt', name }, argument });
    check(completion.values.includes(`${process.pid}`), completion);
  },

  async completion() {
    const ref = { type: 'ref/resource', uri: 'mcptrace://probes/{name}' };
    const { completion } = await client.complete({ ref, argument: { name: 'name', value: 'syscall_l' } });
    assert.deepEqual(completion.values, ['syscall_latency']);
  },

  /** Nothing runs when all is done. */
  async end() {
    const { executions } = await call('list_executions');
    const mine = executions.filter((one) => begun.has(one.execution_id));
    check(mine.length >= 5 && mine.every((one) => one.status !== 'running'), mine);
  },
};

for (const [name, step] of Object.entries(steps)) {
  const start = Date.now();
  try {
    await step();
  } catch (error) {
    console.error(`${name}: ${error.stack}`);
    process.exit(1);
  }
  console.log(`${name}: ${((Date.now() - start) / 1000).toFixed(1)} s`);
}
await close();
console.log(`${checks} checks`);
