"""An agent's way in: the public client's MCP server on stdio, driven by an MCP client."""

import json
import os
import sys
from pathlib import Path

import pytest
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

pytestmark = pytest.mark.anyio


async def test_an_agent_makes_uses_and_destroys_a_sandbox_through_mcp(client_env, workspace):
    program = StdioServerParameters(command=str(Path(sys.executable).parent / "nullspace"), args=["mcp", "serve"],
                                    env={"PATH": os.environ["PATH"], **client_env}, cwd=workspace / "home")
    async with stdio_client(program) as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        tools = {tool.name for tool in (await session.list_tools()).tools}
        assert {"nullspace.sandbox.create", "nullspace.sandbox.exec", "nullspace.sandbox.file.list", "nullspace.sandbox.kill"} <= tools

        async def call(tool, **arguments):
            result = await session.call_tool(tool, arguments)
            assert not result.isError, result
            return result.structuredContent or json.loads(result.content[0].text)

        made = await call("nullspace.sandbox.create", vcpus=1, memory_mb=256, timeout=600)
        sandbox = made["id"]
        ran = await call("nullspace.sandbox.exec", sandbox_id=sandbox, cmd="echo", cmd_args=["hello", "agent"])
        assert (ran["exit_code"], ran["stdout"]) == (0, "hello agent\n")
        listed = await call("nullspace.sandbox.file.list", sandbox_id=sandbox, path="/")
        assert "etc" in {f["name"] for f in listed["result"]}
        assert (await call("nullspace.sandbox.kill", sandbox_id=sandbox))["status"] == "destroyed"
        refused = await call("nullspace.sandbox.get", sandbox_id=sandbox)
        assert refused["error"]["code"] == "sandbox_not_found"
