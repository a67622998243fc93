"""The variants about made-up records that look like real ones: generative adversarial networks."""

from typing import Final, Literal

from pydantic import Field

from fedward_common.study.registry import TaskSpec, register

GENERATOR: Final = "generator."
"""How the names of a generator's tensors begin."""
GAN: Final = "gan"


@register
class Generation(TaskSpec):
    """A generator of records, and a discriminator that tells them from real ones.

    Of a table without a label, or of flat grey images, whose label is read and not learned.

    Hospitals train the discriminator alone: of each record the cross-entropy of calling it real,
    and of calling a record made up that was generated from numbers drawn for it (Goodfellow et al.
    2014). After every round the coordinator moves the generator, `generator_steps` steps of Adam
    at `generator_rate` on `generator_batch` made-up records, against the discriminator that was
    released to it; it sees no patient, and what it does costs no epsilon (Torkzadehmahani et al.
    2019; Xie et al. 2018).
    """

    kind: Literal["generation"] = "generation"
    generator_rate: float = Field(default=0.001, gt=0, le=1)
    generator_steps: int = Field(default=1, ge=1, le=100)
    generator_batch: int = Field(default=256, ge=1, le=65_536)
