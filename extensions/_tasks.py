"""The three tasks, in the order in which everything lists them."""

TASKS = ("sst", "para", "sts")
