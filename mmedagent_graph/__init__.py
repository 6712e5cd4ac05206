"""mmedagent-graph: a medical consultation as a LangGraph graph of swappable nodes (MMedAgent-RL, arXiv 2506.00555)."""

from mmedagent_graph.case import Case
from mmedagent_graph.consultation import Consultation
from mmedagent_graph.context import Context
from mmedagent_graph.graph import build_graph
from mmedagent_graph.images import ImageStore
from mmedagent_graph.prompts import SPECIALTIES

__all__ = ["SPECIALTIES", "Case", "Consultation", "Context", "ImageStore", "build_graph"]
