"""How a technique overrides methods of modules that are already there, which keeps their parts and checkpoint keys."""

from functools import cache


@cache
def overlaid(kind, behaviour):
    """Return the class of modules of class `kind` in which what `behaviour` overrides comes first."""
    name = f"{behaviour.__name__}{kind.__name__}"
    return behaviour if issubclass(behaviour, kind) else type(name, (behaviour, kind), {"__doc__": behaviour.__doc__})


@cache
def underlaid(kind, behaviour):
    """Return the class of modules of class `kind` in which what `behaviour` overrides comes after what `kind` does."""
    name = f"{behaviour.__name__}{kind.__name__}"
    return behaviour if issubclass(behaviour, kind) else type(name, (kind, behaviour), {"__doc__": kind.__doc__})


def overlay(module, behaviour, **attributes):
    """Make `module` a `behaviour` too, and give it the attributes. Raises ValueError when it is one already."""
    if isinstance(module, behaviour):
        raise ValueError("it is there already: name it once")
    module.__class__ = overlaid(type(module), behaviour)
    for name, value in attributes.items():
        setattr(module, name, value)
