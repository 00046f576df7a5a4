"""The parts of the encoder as they were loaded: what --norm, --ffn, --attention and --positions stand at."""

from extensions.technique import Technique


def as_loaded(bert):
    """Identity: the part stays as loaded."""


LAYERNORM = Technique(
    "layernorm", as_loaded, paper="Ba, Kiros and Hinton 2016, arxiv.org/abs/1607.06450",
    does="BERT's layer norms, as loaded.", use="The default.", aka=("ln", "layer-norm"))
ABSOLUTE = Technique(
    "absolute", as_loaded, paper="Devlin et al. 2019, arxiv.org/abs/1810.04805",
    does="BERT's learned absolute positions, as loaded.", use="The default.", aka=("learned", "default"))
