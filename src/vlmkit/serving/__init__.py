"""An OpenAI-compatible chat endpoint and a chat page for one model on one machine."""
