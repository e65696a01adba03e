"""Training of the learned purifiers from photographs: one loop (`loop`) and one file per recipe."""
