#!/bin/sh
# transformers 5.23.0 cannot load the processor of an image-text model that also reads videos (Qwen2-VL, Qwen3-VL …) where
# torchvision is not installed, although its image processors have a Pillow backend. Expected: images and text are processed,
# or a sentence that torchvision is needed. Seen: AttributeError: type object 'VIDEO_PROCESSOR_MAPPING' has no attribute
# '_extra_content', from ProcessorMixin.check_argument_for_proper_class: the class of the video processor is a dummy then.
# Karipap loads such processors without their part for videos (karipap_core/models/pictures.py, processor_of).
#
#     sh findings/transformers-images-need-torchvision.sh     ends with 0 while it is so, with 1 when it has changed
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 torch==2.13.0 pillow
cd "$folder"
cat > probe.py <<'PYTHON'
import sys

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessorPil, Qwen3VLProcessor

words = Tokenizer(models.WordLevel({"a": 0, "<image>": 1, "<video>": 2, "<img>": 3, "</img>": 4}, unk_token="a"))
named = {"image_token": "<image>", "video_token": "<video>"}
named |= {"vision_start_token": "<img>", "vision_end_token": "</img>"}
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, extra_special_tokens=named)
try:
    Qwen3VLProcessor(image_processor=Qwen2VLImageProcessorPil(), tokenizer=tokenizer, video_processor=None)
    found = "loaded"
except Exception as error:
    found = f"{type(error).__name__}: {error}"
print(found)
sys.exit(0 if "_extra_content" in found else "This has changed: look at findings/ and at Karipap's processors of images.")
PYTHON
"$folder/venv/bin/python" probe.py 2> errors || { cat errors; exit 1; }
