"""From a folder of pictures and some hours to two configurations, and then to drawings within those hours.

Tokens pass from one stage to the next by their commands only: nothing here is imported by either stage.
"""
