"""The command line, one file per family of commands.

    generate    a prompt continued
    models      what a model is, in which files, and where they come from
    learn       a model trained, fine-tuned, and scored
    pod         a step compiled for a TPU slice that is not there

Nothing is imported before it is known which command runs.
"""
