"""The page that shows a network before and after."""
