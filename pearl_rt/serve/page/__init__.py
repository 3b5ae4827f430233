"""The page at "/": a chat with the served model that shows what speculation does. Three files, no build step."""
