"""Methods that training calls of a technique, and that do nothing unless the technique overrides them."""


class Hooks:
    """A class that names this as a base itself declares such methods; in its subclasses, other public ones are errors.

    So a misspelt name is a TypeError when the technique is imported, not a technique that does nothing.
    """

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if Hooks in cls.__bases__:
            return  # this class declares the methods
        for name, value in vars(cls).items():
            if callable(value) and not name.startswith("_") and not hasattr(super(cls, cls), name):
                raise TypeError(f"{cls.__name__}.{name}: training calls no method of that name; if it is a helper of "
                                f"the technique, call it _{name}")
