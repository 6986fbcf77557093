"""What goes back to the collection: the answers of a run, the model's and people's, in the formats that others read."""
