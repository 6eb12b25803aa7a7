"""Language: engines that write, what a model is shown, and what is read of its answer."""
