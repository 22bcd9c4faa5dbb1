"""The VoiceEngine's side: what happens in its conversations goes out, and what it delivers by itself comes in."""
