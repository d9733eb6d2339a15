"""`python -m tests.faults.killable_worker`: a worker that dies (kill -9) in its first step with a prompt that begins with
KILLER, as one whose prompt makes a kernel fault would. Of a solo attempt, in a step that comes after its notice."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from rtp_llm.wire.v1.router_pb2 import RouterMessage, WorkerMessage
from rtp_llm.worker import main
from rtp_llm.worker.worker import Worker

KILLER = [13, 1313, 13]
NOTICE_S = 0.02  # csrc/engine/engine.h


class KillableWorker(Worker):
    async def start(self) -> None:
        self._solo: set[int] = set()  # request numbers of killers that wait for their notice
        send = self._routers.send

        def watched(router_epoch: int, message: WorkerMessage) -> bool:
            if message.HasField("started") and message.started.key.request in self._solo:
                self._die_in_the_next_prefill()
            return send(router_epoch, message)

        self._routers.send = watched  # type: ignore[method-assign]
        await super().start()

    def router_said(self, router_epoch: int, message: RouterMessage) -> None:
        if message.HasField("submit") and list(message.submit.request.prompt[: len(KILLER)]) == KILLER:
            if message.submit.solo:
                self._solo.add(message.submit.key.request)
            else:
                self._die_in_the_next_prefill()
        super().router_said(router_epoch, message)

    def _die_in_the_next_prefill(self) -> None:
        def wait() -> None:
            time.sleep(NOTICE_S)
            computed = self._engine.load().prompt_tokens_computed
            while self._engine.load().prompt_tokens_computed == computed:
                time.sleep(0.0005)
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    main.Worker = KillableWorker  # type: ignore[misc]
    sys.exit(main.main())
