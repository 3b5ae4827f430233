"""Steps of drafts that are more than one window of a model: a head of the target, several windows."""
