"""The KubeRay job: only what the published types have (RayJobSpec and RayClusterSpec of ray.io/v1), and a command that
means something here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from fusionx.contract.config import load_config
from fusionx.pipelines.config import FusionConfig


class Published(BaseModel):
    """A field that is not there is a mistake: Kubernetes would drop it in silence or refuse the job."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Reference(Published):
    name: str


class Source(Published):
    secretRef: Reference  # noqa: N815


class Limits(Published):
    limits: dict[str, str]


class Container(Published):
    name: str
    image: str
    envFrom: list[Source]  # noqa: N815
    resources: Limits


class PodSpec(Published):
    containers: list[Container]


class PodTemplate(Published):
    spec: PodSpec


class HeadGroup(Published):
    rayStartParams: dict[str, str]  # noqa: N815
    template: PodTemplate


class WorkerGroup(HeadGroup):
    groupName: str  # noqa: N815
    replicas: int
    minReplicas: int  # noqa: N815
    maxReplicas: int  # noqa: N815


class RayCluster(Published):
    rayVersion: str  # noqa: N815
    enableInTreeAutoscaling: bool  # noqa: N815
    headGroupSpec: HeadGroup  # noqa: N815
    workerGroupSpecs: list[WorkerGroup]  # noqa: N815


class RayJobSpec(Published):
    entrypoint: str
    shutdownAfterJobFinishes: bool  # noqa: N815
    backoffLimit: int  # noqa: N815
    rayClusterSpec: RayCluster  # noqa: N815


class RayJob(Published):
    apiVersion: Literal["ray.io/v1"]  # noqa: N815
    kind: Literal["RayJob"]
    metadata: Reference
    spec: RayJobSpec


@pytest.fixture
def content(root: Path) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((root / "pipelines" / "cluster" / "rayjob.yaml").read_text())
    return read


def test_it_has_the_fields_that_are_published_and_the_pinned_ray(root: Path, content: dict[str, Any]) -> None:
    job = RayJob.model_validate(content)
    pinned = re.search(r"^ray==(.*)$", (root / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert job.spec.rayClusterSpec.rayVersion == pinned[1]
    assert job.spec.rayClusterSpec.headGroupSpec.rayStartParams["num-cpus"] == "0", "the head takes no workers"
    for group in job.spec.rayClusterSpec.workerGroupSpecs:
        assert group.minReplicas <= group.replicas <= group.maxReplicas
    content["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(ValidationError, match="minReplica"):
        RayJob.model_validate(content)


def test_its_command_runs_stages_of_a_config_that_is_there(root: Path, content: dict[str, Any]) -> None:
    shell, option, script = shlex.split(content["spec"]["entrypoint"])
    assert (shell, option) == ("sh", "-c")
    loop = re.fullmatch(r"cd /fusionx && for stage in (.*?); do\s+(.*?)\s+\|\| exit 1; done", script)
    assert loop is not None
    stages, command = loop.groups()
    assert stages.split() == ["chunk", "precompute", "align"]
    program, stage, config, *options = command.split()
    assert (program, stage) == ("fusionx", "$stage")
    assert options[::2] == ["--set"] * (len(options) // 2)
    found = load_config(FusionConfig, root / config, options[1::2])
    job = RayJob.model_validate(content)
    gpus = sum(
        group.maxReplicas * int(group.template.spec.containers[0].resources.limits["nvidia.com/gpu"])
        for group in job.spec.rayClusterSpec.workerGroupSpecs
    )
    assert found.precompute.workers * found.precompute.num_gpus == gpus, "as many workers as the cluster may have GPUs"
