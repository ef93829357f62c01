"""The pods that a job runs on; local runs take only the replica counts from here."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from limbeck.api.fields import ApiModel, FreeForm, rule, with_rules

Replicas = Annotated[int, Field(ge=1, le=10_000)]


class HeadPool(ApiModel):
    """The head pod, on which the driver runs."""

    template: FreeForm = Field(default_factory=dict, description="Pod template, e.g. {spec: {...}}.")


class TeacherPool(ApiModel):
    """The teacher's pods."""

    model_config = ConfigDict(
        json_schema_extra=with_rules(
            rule(
                "(has(self.minReplicas) ? self.minReplicas : 1) <= (has(self.maxReplicas) ? self.maxReplicas : 1)",
                "`minReplicas` must be at most `maxReplicas`, each 1 where not given; lower one or raise the other",
            )
        )
    )

    min_replicas: Replicas = Field(1, description="Fewest pods, e.g. 1.")
    max_replicas: Replicas = Field(1, description="Most pods, e.g. 16.")
    spot: bool = Field(False, description="Tolerate preemptible nodes, e.g. true.")
    template: FreeForm = Field(default_factory=dict, description="Pod template, e.g. {spec: {...}}.")

    @model_validator(mode="after")
    def _range(self) -> TeacherPool:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"`minReplicas` must be at most `maxReplicas`, got {self.min_replicas} and "
                f"{self.max_replicas}; lower one or raise the other"
            )
        return self


class StudentPool(ApiModel):
    """The student's pods."""

    replicas: Replicas = Field(1, description="Pods, each one training worker, e.g. 4.")
    template: FreeForm = Field(default_factory=dict, description="Pod template, e.g. {spec: {...}}.")


class Cluster(ApiModel):
    """The job's Ray cluster."""

    image: Annotated[str, Field(max_length=512)] = Field(
        "", description="Runtime image; empty takes the operator's, e.g. registry.example/limbeck:1."
    )
    head: HeadPool = Field(default_factory=HeadPool, description="The head pod, e.g. {template: {}}.")
    teacher: TeacherPool = Field(default_factory=TeacherPool, description="Teacher pods, e.g. {maxReplicas: 4}.")
    student: StudentPool = Field(default_factory=StudentPool, description="Student pods, e.g. {replicas: 2}.")
