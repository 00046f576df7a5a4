"""The three tasks, in the order in which everything lists them, and those of them on pairs."""

TASKS = ("sst", "para", "sts")
PAIR_TASKS = ("para", "sts")
