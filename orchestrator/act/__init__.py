"""One generation at work: admission, what a model is shown, and running the agent."""
