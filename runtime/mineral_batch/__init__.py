"""Batch recognition of minerals in photographs: the part that a user deploys."""
