"""The clinic's specialists and their teacher: chat models that know nothing but what they are shown, and err.

They are put where real models would be: they receive the specialist's prompt, read the key inside the image and answer.
A doctor errs as its case says, the teacher at random. An image that is not the clinic's is an error, hence an opinion
that says so.
"""

import base64
import dataclasses
import hashlib
from abc import abstractmethod
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from mmedagent_graph.prompts import SPECIALIST
from rl.clinic.cases import LURE, OUTSIDER, RELIABILITY, Key, read_key
from rl.guidelines import GENERAL, Name, read_guideline

GUIDELINE = GENERAL.with_name("clinic.yaml")
"""What the teacher reasons by."""
THOUGHT = "I weigh what I see and what I am told."
"""What the tiny model thinks, whatever it is asked."""
TAUGHT: dict[Name, str] = {
    "differential": "{seen}\n{other}",
    "intuitive": "{seen}",
    "analytical": f"{THOUGHT}\n{{seen}}",
    "bayesian": "{seen}\n{seen}\n{other}",
}
"""The teacher's reasoning, in words that the tiny model has: the output embeddings of all others are one."""
TEACHER_ERRS = 0.1
"""Chance that the teacher takes the case's lure for the finding, whatever the specialty."""


class _Simulated(BaseChatModel):
    """Whoever reads the key."""

    @property
    def _llm_type(self) -> str:
        return "clinic-doctor"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        images = [block for block in messages[-1].content if isinstance(block, dict) and block["type"] == "image"]
        key = read_key(base64.b64decode(images[0]["base64"])) if images else None
        if key is None:
            raise ValueError("images: the clinic's doctors can only read images that the clinic made")
        said_by = {"model_name": self._identifying_params["model"]}
        message = AIMessage(self.say(key, messages[0].text), response_metadata=said_by)
        return ChatResult(generations=[ChatGeneration(message=message)])

    @abstractmethod
    def say(self, key: Key, system: str) -> str:
        """What is answered about the image of this key to a prompt with this system turn."""


class ClinicDoctor(_Simulated):
    """Doctor number `doctor` of whatever specialty its prompt names."""

    doctor: int

    @property
    def _identifying_params(self) -> dict[str, Any]:
        # how the doctors err is a part of who they are: frozen answers go by it
        return {"model": f"clinic:doctor-{self.doctor}", "errs": [RELIABILITY, LURE, OUTSIDER]}

    def say(self, key: Key, system: str) -> str:
        """What it sees, without a word of why."""
        before, after = SPECIALIST.split("{specialty}")
        return f"<answer>{key.seen_by(self.doctor, system.partition(before)[2].partition(after)[0])}</answer>"


class ClinicTeacher(_Simulated):
    """One who reasons from the perspective of `GUIDELINE` that its prompt asks for, and mostly sees what is there."""

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": "clinic:teacher", "errs": TEACHER_ERRS, "taught": TAUGHT}

    def say(self, key: Key, system: str) -> str:
        """Its reasoning and its answer: the same however often it is asked."""
        prompts = {told.prompt: name for name, told in read_guideline(GUIDELINE).perspectives.items()}
        name = prompts.get(system.rpartition("\n")[2])
        if name is None:
            raise ValueError(f"guideline: clinic:teacher reasons by {GUIDELINE.name}; give --guideline {GUIDELINE}")
        digest = hashlib.sha256(f"{dataclasses.astuple(key)}|{name}".encode()).digest()
        seen, other = key.finding, key.lure
        if int.from_bytes(digest[:8], "big") / 2**64 < TEACHER_ERRS:
            seen, other = other, seen
        return f"<think>{TAUGHT[name].format(seen=seen, other=other)}</think><answer>{seen}</answer>"


DOCTORS = [ClinicDoctor(doctor=number) for number in (1, 2, 3)]
"""The panel: three doctors who err independently, given the case."""
DOCTOR_NAMES = [f"clinic:doctor-{one.doctor}" for one in DOCTORS]
"""Their model strings."""
