"""Run a compiled pipeline through Kubeflow's local runner. It stands alone: in a cluster its source travels to a pod.

Usage: local_run.py SPEC PARAMETERS FOLDER RUN_ID WORKFLOW, the first two being files of JSON.
"""

import json
import sys
import warnings
from pathlib import Path


def main() -> None:
    spec_file, parameters_file, folder, run_id, workflow = sys.argv[1:]
    warnings.simplefilter("ignore")  # that claims and secrets mean nothing to it is known
    from kfp import components, local
    from kfp.local import executor_input_utils, placeholder_utils
    from kfp.local.orchestrator import dag_orchestrator, enhanced_dag_orchestrator

    # The steps know the run by its id and its workflow's name, which the local runner makes up.
    placeholder_utils.make_random_id = lambda: run_id
    executor_input_utils.get_local_pipeline_resource_name = lambda _: workflow
    # As on a cluster, what stands beside a step that fails is not stopped by it. kfp does so only with an exit handler.
    dag_orchestrator.run_dag = enhanced_dag_orchestrator.run_enhanced_dag
    # JSON is YAML; what belongs to the platform is not for the local runner.
    pipeline = components.load_component_from_text(Path(spec_file).read_text())
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=folder)
    pipeline(**json.loads(Path(parameters_file).read_text()))


if __name__ == "__main__":
    main()
