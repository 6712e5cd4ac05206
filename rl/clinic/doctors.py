"""The clinic's specialists: a chat model that errs as its case says, and knows nothing but what it is shown.

It is put where a real model would be: it receives the specialist's prompt, reads the key inside the image and answers
as that doctor would. An image that is not the clinic's is an error, hence an opinion that says so.
"""

import base64
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from mmedagent_graph.prompts import SPECIALIST
from rl.clinic.cases import LURE, OUTSIDER, RELIABILITY, read_key


class ClinicDoctor(BaseChatModel):
    """Doctor number `doctor` of whatever specialty its prompt names."""

    doctor: int

    @property
    def _llm_type(self) -> str:
        return "clinic-doctor"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        # how the doctors err is a part of who they are: frozen answers go by it
        return {"model": f"clinic:doctor-{self.doctor}", "errs": [RELIABILITY, LURE, OUTSIDER]}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        answer = self._answer(messages)
        said_by = {"model_name": f"clinic:doctor-{self.doctor}"}
        message = AIMessage(f"<answer>{answer}</answer>", response_metadata=said_by)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _answer(self, messages: list[BaseMessage]) -> str:
        system, user = messages[0].text, messages[-1]
        before, after = SPECIALIST.split("{specialty}")
        specialty = system.partition(before)[2].partition(after)[0]
        images = [block for block in user.content if isinstance(block, dict) and block["type"] == "image"]
        key = read_key(base64.b64decode(images[0]["base64"])) if images else None
        if key is None:
            raise ValueError("images: the clinic's doctors can only read images that the clinic made")
        return key.seen_by(self.doctor, specialty)


DOCTORS = [ClinicDoctor(doctor=number) for number in (1, 2, 3)]
"""The panel: three doctors who err independently, given the case."""
