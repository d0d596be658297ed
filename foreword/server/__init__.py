"""OpenAI-compatible HTTP over the engine: names in, text out.

Clients send names and text, never tensors and never paths. The handlers are asyncio; the engine
steps in a thread of its own, and the two meet in queues.
"""
