"""mmedagent-graph: a medical consultation as a LangGraph graph of swappable nodes (MMedAgent-RL, arXiv 2506.00555)."""

from mmedagent_graph.case import Case
from mmedagent_graph.graph import build_graph
from mmedagent_graph.prompts import SPECIALTIES

__all__ = ["SPECIALTIES", "Case", "build_graph"]
