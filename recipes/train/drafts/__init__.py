"""What each kind of draft that is trained begins with, learns from, and is written as."""
