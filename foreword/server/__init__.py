"""HTTP server: OpenAI's API over the serving engine.

In: HTTP requests that name a model or a prompt. Out: JSON answers, or streams of them. Clients send
names and text, never tensors and never paths. The handlers are asyncio; the engine steps in a
thread of its own, and its tokens reach the handlers through queues. Knows no training.
"""
