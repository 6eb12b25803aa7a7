"""REST: OpenAI's chat completions and models, and Baton's sessions."""
