"""Drives mcptrace with the client of the official Python SDK: `drive.py SPEC`, where SPEC is JSON.

    transport   "stdio", "unix" or "http"
    command     the server as a list of words, for "stdio"
    socket      a path, for "unix"
    url, token  for "http"
    era         "legacy" (with `initialize`, up to 2025-11-25) or "auto" (asks; 2026-07-28)
    recorded    whether the server has a recorder behind it

Ends with 0 and the number of checks, or with 1 and what is wrong. The client itself checks every structured result against the schema
of its tool, and every message against the schema of its protocol version.
"""

import json
import os
import random
import sys
import tempfile
import time
import traceback
from contextlib import asynccontextmanager

import anyio
import httpx2
import mcp_types as types
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage

TOOLS = {
    "triage", "run_probe", "list_probes", "describe_probe", "get_result", "list_executions", "stop_execution", "exec_program",
    "query_history", "bpf_info",
}
VERSIONS = {"legacy": "2025-11-25", "auto": "2026-07-28"}
PATIENCE = 60
checks = 0


def check(truth, what):
    """Counts a check; ends the program if it fails."""
    global checks
    if not truth:
        raise AssertionError(what)
    checks += 1


@asynccontextmanager
async def unix_client(path):
    """A transport that the SDK does not have: lines of JSON over a unix socket."""
    stream = await anyio.connect_unix(path)
    to_session, incoming = anyio.create_memory_object_stream(0)
    outgoing, from_session = anyio.create_memory_object_stream(0)

    async def read():
        buffer = b""
        async with to_session:
            async for chunk in stream:
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    message = types.jsonrpc_message_adapter.validate_json(line, by_name=False)
                    await to_session.send(SessionMessage(message))

    async def write():
        async with from_session:
            async for message in from_session:
                line = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                await stream.send(line.encode() + b"\n")

    async with stream, anyio.create_task_group() as group:
        group.start_soon(read)
        group.start_soon(write)
        yield incoming, outgoing
        group.cancel_scope.cancel()


@asynccontextmanager
async def connected(spec):
    """The client, connected, and what it was told of changed resources."""
    updates = []

    async def heard(message):
        if isinstance(message, types.ResourceUpdatedNotification):
            updates.append(str(message.params.uri))

    options = {"mode": spec["era"], "read_timeout_seconds": PATIENCE, "message_handler": heard}
    if spec["transport"] == "http":
        headers = {"Authorization": f"Bearer {spec['token']}"}
        async with httpx2.AsyncClient(headers=headers, timeout=httpx2.Timeout(30, read=300)) as http:
            async with Client(streamable_http_client(spec["url"], http_client=http), **options) as client:
                yield client, updates
        return
    if spec["transport"] == "unix":
        transport = unix_client(spec["socket"])
    else:
        command, *arguments = spec["command"]
        transport = stdio_client(StdioServerParameters(command=command, args=arguments, env=dict(os.environ)))
    async with Client(transport, **options) as client:
        yield client, updates


class Drive:
    """One client and what it does."""

    def __init__(self, spec, client, updates):
        self.spec = spec
        self.client = client
        self.updates = updates
        self.legacy = spec["era"] == "legacy"
        self.begun = set()

    async def call(self, name, arguments=None, **more):
        """Calls a tool that must succeed; gives its structured result."""
        result = await self.client.call_tool(name, arguments or {}, **more)
        check(not result.is_error, f"{name} {arguments}: {result.content}")
        check(result.structured_content is not None, f"{name} has no structured result")
        check(result.content[0].text, f"{name} has no text")
        self.begun.add(result.structured_content.get("execution_id"))
        return result.structured_content

    async def refused(self, name, arguments):
        """Calls a tool that must refuse; gives what it says."""
        result = await self.client.call_tool(name, arguments)
        check(result.is_error, f"{name} {arguments} is not refused: {result.content}")
        return result.structured_content

    async def begin(self, arguments, seconds=600):
        """Starts a probe in the background and gives its id."""
        arguments = {"background": True, "seconds": seconds} | arguments
        return (await self.call("run_probe", arguments))["execution_id"]

    async def introduction(self):
        client = self.client
        check(client.protocol_version == VERSIONS[self.spec["era"]], client.protocol_version)
        check("run_probe" in client.instructions, client.instructions)
        check(client.server_info is None or client.server_info.name == "mcptrace", client.server_info)
        tools = (await client.list_tools()).tools
        check({tool.name for tool in tools} == TOOLS, tools)
        check(all(tool.output_schema and tool.annotations and tool.title for tool in tools), tools)
        wrong = types.CallToolResult(content=[], structured_content={"execution_id": 7})
        try:
            await client.session.validate_tool_result("run_probe", wrong)
        except RuntimeError:
            return
        check(False, "the client does not check results against the schema of their tool")

    async def looking(self):
        info = await self.call("bpf_info")
        check(info["native_works"], info["problems"])
        native = (await self.call("list_probes"))["native"]
        names = {probe["name"] for probe in native}
        check({"file_opens", "syscall_counts"} <= names, names)
        described = await self.call("describe_probe", {"name": "file_opens"})
        check("path_prefix" in described["options"], described)
        check((await self.call("describe_probe", {"name": "tracepoint:sched:sched_switch"}))["kind"] == "tracepoint", "kind")
        check((await self.call("list_probes", {"source": "scripts"}))["scripts"], "no scripts")

    async def pages_of_probes(self):
        """A list in pages, whose size is a number as text."""
        found, arguments = [], {"filter": "sched:*", "limit": "10"}
        while True:
            page = await self.call("list_probes", arguments)
            check(page["count"] == len(page["probes"]) <= 10, page)
            found += page["probes"]
            if "next_cursor" not in page:
                break
            arguments["cursor"] = page["next_cursor"]
        check(len(found) == page["total"] == len(set(found)) > 10, (len(found), page["total"]))

    async def exact_count_in_pages(self):
        """What this process does is found to the last one, and paged through by cursor."""
        with tempfile.TemporaryDirectory() as folder:
            prefix = os.path.join(folder, "none-")
            execution = await self.begin({"probe": "file_opens", "options": {"path_prefix": prefix}})
            for number in range(23):
                check(not os.path.exists(open_missing(f"{prefix}{number}")), "it is there")
        stopped = await self.call("stop_execution", {"execution_id": execution})
        check(stopped["status"] == "stopped" and stopped["loss"]["seen"] == 23, stopped["loss"])
        paths, arguments = [], {"execution_id": execution, "limit": "7"}
        while True:
            page = await self.call("get_result", arguments)
            paths += [row["path"] for row in page["report"]["rows"]]
            if "cursor" not in page.get("more", {}):
                break
            arguments["cursor"] = page["more"]["cursor"]
        check(paths == [f"{prefix}{number}" for number in range(23)], paths)

    async def text_for_numbers(self):
        found = await self.call("run_probe", {
            "probe": "syscall_latency", "seconds": "0.3", "top": "3", "background": "false",
            "options": "{\"slower_than_us\": \"100000\"}", "filter": "{\"uid\": \"0\"}",
        })
        check(found["options"]["slower_than_us"] == 100_000 and found["filter"]["uid"] == 0, found)

    async def progress(self):
        told = []

        async def tell(progress, total, message):
            told.append((progress, total, message))

        found = await self.call("run_probe", {"probe": "syscall_counts", "seconds": 3}, progress_callback=tell)
        check(found["status"] == "completed" and found["loss"]["seen"] > 0, found)
        check(told and all(total == 3 and "seen" in message for _, total, message in told), told)
        steps = [progress for progress, _, _ in told]
        check(steps == sorted(set(steps)), steps)

    async def cancelling(self):
        """A call that its caller gives up ends what it has started."""
        seconds = (40_000 + random.randrange(1, 5000)) / 1000

        async def statuses():
            listed = (await self.call("list_executions"))["executions"]
            return [one["status"] for one in listed if one["planned_seconds"] == seconds]

        async def give_up():
            await self.until(statuses, ["running"])
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(give_up)
            # Of what never happens, so that it costs nothing and no budget ends it.
            arguments = {"probe": "file_opens", "options": {"path_prefix": "/nowhere/"}, "seconds": seconds}
            result = await self.client.call_tool("run_probe", arguments)
            check(False, f"it was not cancelled: {result}")
        await self.until(statuses, ["stopped"])

    async def until(self, look, wanted):
        """Looks again and again until it sees what is wanted."""
        deadline = time.monotonic() + PATIENCE
        while (found := await look()) != wanted:
            check(time.monotonic() < deadline, f"{found} and not {wanted}")
            await anyio.sleep(0.2)

    async def scripts(self):
        program = "BEGIN { printf(\"%s\\n\", \"hello\"); @n[7] = count(); exit(); }"
        begun = await self.call("exec_program", {"program": program, "timeout": "5"})
        found = await self.call("get_result", {"execution_id": begun["execution_id"], "wait_seconds": 30})
        check("hello" in found["output"] and found["status"] == "completed", found)
        check(any(report["name"] == "@n" for report in found["reports"]), found)
        wrong = await self.refused("exec_program", {"program": "BEGIN { printf( }"})
        check(wrong["category"] == "syntax" and wrong["line"] == 1, wrong)
        denied = await self.refused("exec_program", {"program": "BEGIN { system(\"id\"); }"})
        check("system" in denied["message"], denied)

    async def triage(self):
        async def ended():
            result = await self.client.call_tool("triage", {"seconds": 2, "focus": "cpu"})
            found = result.structured_content
            busy = result.is_error and found["category"] == "busy"
            check(busy or ("findings" in found and found["window"]["seconds"] > 1), found)
            return not busy

        # A user may have two under way, and other clients of these tests are the same user.
        await self.until(ended, True)

    async def history(self):
        if not self.spec["recorded"]:
            refusal = await self.refused("query_history", {"metric": "context_switches"})
            check("daemon" in json.dumps(refusal), refusal)
            return

        async def has_coverage():
            asked = {"metric": "context_switches", "from": "-1m"}
            found = await self.client.call_tool("query_history", asked)
            return not found.is_error and len(found.structured_content["coverage"]) > 0

        await self.until(has_coverage, True)

    async def errors(self):
        near = await self.refused("run_probe", {"probe": "file_open"})
        check(near["category"] == "unknown_probe" and "file_opens" in near["did_you_mean"], near)
        near = await self.refused("run_probe", {"probe": "file_opens", "optons": {}})
        check(near["category"] == "unknown_argument" and "options" in near["did_you_mean"], near)
        near = await self.refused("run_probe", {"probe": "file_opens", "filter": {"comn": "sh"}})
        check("filter.comm" in near["did_you_mean"], near)
        wrong = await self.refused("run_probe", {"probe": "file_opens", "seconds": "soon"})
        check("seconds" in wrong["message"], wrong)
        check((await self.refused("run_probe", {}))["category"] == "missing_argument", "missing")
        check((await self.refused("get_result", {"execution_id": "exec_0"}))["category"] == "unknown_execution", "unknown")
        await self.fails(lambda: self.client.call_tool("run_prob", {}), -32602, "run_probe")
        gone = -32002 if self.legacy else -32602
        await self.fails(lambda: self.client.read_resource("mcptrace://probes/nothing"), gone, "nothing")
        await self.fails(lambda: self.client.get_prompt("nothing"), -32602, "nothing")

    async def fails(self, what, code, text):
        """An error of the protocol, which this client raises."""
        try:
            await what()
        except MCPError as error:
            said = json.dumps([error.error.message, error.error.data])
            check(error.error.code == code and text in said, (error.error.code, said))
            return
        check(False, f"no error {code}")

    async def resources(self):
        listed = (await self.client.list_resources()).resources
        check(len({resource.uri for resource in listed}) == len(listed) > 50, len(listed))
        for uri in ["mcptrace://schema/report", "mcptrace://probes/file_opens", "mcptrace://scripts/accept_queue"]:
            check(any(str(resource.uri) == uri for resource in listed), uri)
            content = (await self.client.read_resource(uri)).contents[0]
            check(len(content.text) > 100 and str(content.uri) == uri, content)
            check(content.mime_type != "application/json" or json.loads(content.text), content)
        templates = (await self.client.list_resource_templates()).resource_templates
        check("mcptrace://executions/{id}/flamegraph.svg" in {one.uri_template for one in templates}, templates)
        found = await self.call("run_probe", {"probe": "cpu_profile", "seconds": 1})
        picture = await self.client.read_resource(f"mcptrace://executions/{found['execution_id']}/flamegraph.svg")
        check(picture.contents[0].mime_type == "image/svg+xml" and "<svg" in picture.contents[0].text, picture)

    async def subscribing(self):
        """Changes of an execution are told, to its end."""
        execution = await self.begin({"probe": "syscall_counts"})
        uri = f"mcptrace://executions/{execution}"
        if self.legacy:
            await self.client.subscribe_resource(uri)
            await self.until(self.told, {uri})
            await self.client.unsubscribe_resource(uri)
            await self.call("stop_execution", {"execution_id": execution})
            return
        async with self.client.listen(resource_subscriptions=[uri]) as subscription:
            check(subscription.honored.resource_subscriptions == [uri], subscription.honored)
            with anyio.fail_after(PATIENCE):
                async for event in subscription:
                    check(str(event.uri) == uri, event)
                    break
                await self.call("stop_execution", {"execution_id": execution})
                async for event in subscription:
                    check(str(event.uri) == uri, event)
        content = json.loads((await self.client.read_resource(uri)).contents[0].text)
        check(content["status"] == "stopped", content)

    async def told(self):
        return set(self.updates)

    async def prompts(self):
        listed = (await self.client.list_prompts()).prompts
        check(len(listed) >= 5 and all(prompt.description for prompt in listed), listed)
        narrow = next(prompt for prompt in listed if any(one.name == "pid" for one in prompt.arguments or []))
        got = await self.client.get_prompt(narrow.name, {"pid": str(os.getpid())})
        text = got.messages[0].content.text
        check("run_probe" in text and str(os.getpid()) in text, text)
        reference = types.PromptReference(name=narrow.name)
        found = await self.client.complete(reference, {"name": "pid", "value": str(os.getpid())})
        check(str(os.getpid()) in found.completion.values, found)

    async def completion(self):
        reference = types.ResourceTemplateReference(uri="mcptrace://probes/{name}")
        found = await self.client.complete(reference, {"name": "name", "value": "syscall_l"})
        check(found.completion.values == ["syscall_latency"], found)

    async def end(self):
        """Nothing runs when all is done."""
        listed = (await self.call("list_executions"))["executions"]
        mine = [one for one in listed if one["execution_id"] in self.begun]
        check(len(mine) >= 5 and all(one["status"] != "running" for one in mine), mine)


def open_missing(path):
    """Opens what is not there, which the probe must see."""
    try:
        open(path).close()
    except FileNotFoundError:
        pass
    return path


async def run(drive):
    """All steps; gives what is wrong, if anything is."""
    for step in [
        drive.introduction, drive.looking, drive.pages_of_probes, drive.exact_count_in_pages, drive.text_for_numbers,
        drive.progress, drive.cancelling, drive.scripts, drive.triage, drive.history, drive.errors, drive.resources,
        drive.subscribing, drive.prompts, drive.completion, drive.end,
    ]:
        begun = time.monotonic()
        try:
            await step()
        except Exception:
            return f"{step.__name__}: {traceback.format_exc()}"
        print(f"{step.__name__}: {time.monotonic() - begun:.1f} s", flush=True)
    return None


async def main():
    spec = json.loads(sys.argv[1])
    async with connected(spec) as (client, updates):
        wrong = await run(Drive(spec, client, updates))
    if wrong:
        sys.exit(wrong)
    print(f"{checks} checks")


anyio.run(main)
