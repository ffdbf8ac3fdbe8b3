"""The life of a project ends: teardown takes what was brought up, and the data when it is told."""

from tests.cluster import project as projects
from tests.cluster import runs
from tests.cluster.project import Project

OURS = "--selector=app.kubernetes.io/part-of=jukebox"


def test_teardown_takes_everything_but_the_models_and_the_history(published: Project) -> None:
    project, name = published, projects.NAMESPACE
    models = runs.models(project)
    said = project.jukebox("teardown", "--part=tenant", "--yes", kubeconfig=projects.tenant(project))
    assert f"Argo CD still manages {name}: an administrator ends that with jukebox teardown --part platform" in said
    for kubectl in (project.kubectl, project.ci):
        assert not kubectl("get", "roles,rolebindings,serviceaccounts,pipelineruns", OURS, "--output=name")
    assert "Deleted, except the data" in project.jukebox("teardown", "--yes")
    assert project.applied().keys() == {
        "PersistentVolumeClaim/jukebox-model-pvc",
        "DataSciencePipelinesApplication/dspa",
    }
    assert project.get("secret/jukebox-listener")
    gone = (
        f"applicationset/{name}",
        f"application/{projects.APPLICATION}",
        f"appproject/{name}",
        f"secret/{name}-git-host",
    )
    assert not project.argocd("get", *gone, "--ignore-not-found")
    assert len(models) > 1
    assert runs.models(project) == models

    project.jukebox("teardown", "--data", "--yes")
    assert not project.argocd("get", "namespace", name, projects.CI_NAMESPACE, "--ignore-not-found")
