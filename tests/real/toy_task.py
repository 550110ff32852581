"""The toy environment as a task, found as "real.toy_task"."""

import toy_env

task = toy_env.TOY
