"""Run a compiled pipeline through Kubeflow's local runner. It stands alone: in a cluster its source travels to a pod.

Usage: local_run.py SPEC PARAMETERS FOLDER RUN_ID WORKFLOW [CACHE], the first two being files of JSON. Run again in the
same folder, it runs what has not succeeded yet, as a retry does. With a folder for the cache there is one.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any


def main() -> None:
    spec_file, parameters_file, folder, run_id, workflow, *cache = sys.argv[1:]
    warnings.simplefilter("ignore")  # that claims and secrets mean nothing to it is known
    from kfp import components, local
    from kfp.local import cache as local_cache
    from kfp.local import executor_input_utils, placeholder_utils
    from kfp.local.orchestrator import dag_orchestrator, enhanced_dag_orchestrator, task_executor

    # The steps know the run by its id and its workflow's name, which the local runner makes up.
    placeholder_utils.make_random_id = lambda: run_id
    executor_input_utils.get_local_pipeline_resource_name = lambda _: workflow
    # As on a cluster, what stands beside a step that fails is not stopped by it. kfp does so only with an exit handler.
    dag_orchestrator.run_dag = enhanced_dag_orchestrator.run_enhanced_dag
    # The real driver takes what is cached without a look at the bucket (backend/src/v2/driver/cache.go).
    local_cache._is_remote_uri = lambda _: True
    get, hits = local_cache.LocalCache.get, list[bool]()

    def get_noted(self: Any, key: str) -> Any:
        found = get(self, key)
        hits.append(found is not None)
        return found

    local_cache.LocalCache.get = get_noted
    execute, done = task_executor.execute_single_task, Path(folder) / ".done"
    done.mkdir(parents=True, exist_ok=True)

    def execute_unless_done(*, task_name: str, **rest: Any) -> Any:
        file = done / task_name
        if file.is_file():
            kept = json.loads(file.read_text()).items()
            return {
                key: local_cache.LocalCache._deserialize_output(value) for key, value in kept
            }, local.status.Status.SUCCESS
        hits.clear()
        outputs, status = execute(task_name=task_name, **rest)
        if any(hits):
            print(f"Task '{task_name}' cache hit", flush=True)  # kfp says so to a logger that nobody hears
        if status == local.status.Status.SUCCESS:
            file.write_text(json.dumps(local_cache.LocalCache._serialize_outputs(outputs)))
        return outputs, status

    task_executor.execute_single_task = execute_unless_done
    # JSON is YAML; what belongs to the platform is not for the local runner.
    pipeline = components.load_component_from_text(Path(spec_file).read_text())
    caching = {"enable_caching": True, "cache_root": cache[0]} if cache else {}
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=folder, **caching)
    pipeline(**json.loads(Path(parameters_file).read_text()))


if __name__ == "__main__":
    main()
