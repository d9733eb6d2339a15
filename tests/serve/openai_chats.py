"""200 chats of the `openai` client, each with a timeout of 0.5 s and asked again when it has timed out. A process of its own,
so that whoever watches the server isn't kept waiting by so many clients; all leave when its standard input ends.

python openai_chats.py BASE_URL whole|streamed
"""

import asyncio
import sys

import openai

NUM_CHATS = 200
TIMEOUT_S = 0.5
TOKENS = 1900


async def chat(client: openai.AsyncOpenAI, stream: bool) -> None:
    while True:
        try:
            answer = await client.chat.completions.create(
                model="demo",
                messages=[{"role": "user", "content": "Count."}],
                max_tokens=TOKENS,
                stream=stream,  # type: ignore[call-overload]
                extra_body={"min_tokens": TOKENS, "ignore_eos": True},
            )
            if stream:
                async for _ in answer:
                    pass
        except openai.APITimeoutError:
            pass


async def main(base_url: str, stream: bool) -> None:
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=TIMEOUT_S) as client:
        chats = [asyncio.create_task(chat(client, stream)) for _ in range(NUM_CHATS)]
        await asyncio.to_thread(sys.stdin.read)
        for task in chats:
            task.cancel()
        await asyncio.gather(*chats, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2] == "streamed"))
