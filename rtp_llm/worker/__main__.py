"""`python -m rtp_llm.worker`."""

import sys

from rtp_llm.worker.main import main

sys.exit(main())
