"""From 13 audio features of a song to the countries where it charts."""
