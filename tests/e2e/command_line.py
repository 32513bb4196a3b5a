"""A `nullspace` program as a user runs it: the public client's, or ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

from appliance import cache

PUBLIC = Path(sys.executable).parent / "nullspace"


class Cli:
    def __init__(self, program, env, cwd):
        self.program, self.cwd = program, cwd
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("NULLSPACE_")} | {"NULLSPACE_CACHE": str(cache())} | env

    def __call__(self, *words, stdin="", exit=0, env=None):
        done = subprocess.run([self.program, *words], input=stdin, capture_output=True, text=True, timeout=180,
                              env=self.env | (env or {}), cwd=self.cwd)
        assert done.returncode == exit, (words, done)
        return done

    def json(self, *words, **more):
        return json.loads(self(*words, **more).stdout)
