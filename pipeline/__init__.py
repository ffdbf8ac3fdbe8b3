"""The training pipeline of the jukebox model: what the training image holds."""
