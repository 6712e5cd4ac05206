"""The three kinds of node: triage, specialist, attending; and how each stands in the graph."""

from mmedagent_graph.nodes.attending import Attending, Voter
from mmedagent_graph.nodes.base import Node, Swappable, Update
from mmedagent_graph.nodes.specialist import Specialist
from mmedagent_graph.nodes.triage import Triage

__all__ = ["Attending", "Node", "Specialist", "Swappable", "Triage", "Update", "Voter"]
