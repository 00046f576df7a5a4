"""What touches disk and network; nothing here imports the rest of the project.

errors      one clear message for a user's mistake, exit codes, the scripts' parser
writing     files written whole or not at all, places that can be written
tables      the course's files to rows
http        one request, and whether its answer is the file
downloads   downloads and their cache: retried, resumed, checked
pretrained  the files of a pretrained model: packaged, in a folder, at an address, on a hub
"""
