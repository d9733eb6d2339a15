import os
import sys
from pathlib import Path

# The worker processes find their modules beside this file and, where nothing is installed, the package beside tests/.
sys.path.insert(0, str(Path(__file__).parent))
if os.environ.get("RTP_LLM_NATIVE_DIR"):
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
